-- A trading company: short text keys, smallint, real, date, time, bytea, money-like texts, jsonb, inet, order lines.
CREATE SCHEMA trade;
CREATE TABLE trade.category (category_id smallint PRIMARY KEY, name varchar(15) NOT NULL, description text, picture bytea);
CREATE TABLE trade.customer (
  customer_id varchar(5) PRIMARY KEY,
  company varchar(40) NOT NULL,
  city varchar(15),
  phone varchar(24),
  last_seen_from inet
);
CREATE TABLE trade.customer_kind (
  customer_id varchar(5) NOT NULL REFERENCES trade.customer,
  kind char(5) NOT NULL,
  PRIMARY KEY (customer_id, kind)
);
CREATE TABLE trade.employee (
  employee_id smallint PRIMARY KEY,
  last_name varchar(20) NOT NULL,
  hired date,
  starts time,
  notes jsonb,
  reports_to smallint REFERENCES trade.employee
);
CREATE TABLE trade.supplier (supplier_id uuid PRIMARY KEY, company varchar(40) NOT NULL, homepage text);
CREATE TABLE trade.product (
  product_id smallint PRIMARY KEY,
  name varchar(40) NOT NULL,
  supplier_id uuid REFERENCES trade.supplier,
  category_id smallint REFERENCES trade.category,
  unit_price real,
  in_stock smallint CHECK (in_stock >= 0),
  discontinued integer NOT NULL
);
CREATE TABLE trade.orders (
  order_id integer PRIMARY KEY,
  customer_id varchar(5) REFERENCES trade.customer,
  employee_id smallint REFERENCES trade.employee,
  ordered date,
  freight real,
  ship_region varchar(15)
);
CREATE TABLE trade.order_line (
  order_id integer NOT NULL REFERENCES trade.orders,
  product_id smallint NOT NULL REFERENCES trade.product,
  unit_price real NOT NULL,
  quantity smallint NOT NULL,
  discount double precision NOT NULL,
  PRIMARY KEY (order_id, product_id)
);
CREATE TABLE trade.region (region_id smallint PRIMARY KEY, description varchar(60) NOT NULL);
CREATE TABLE trade.territory (
  territory_id varchar(20) PRIMARY KEY,
  description varchar(60) NOT NULL,
  region_id smallint NOT NULL REFERENCES trade.region DEFERRABLE INITIALLY DEFERRED
);
