-- A music shop: varchar(n) everywhere, numeric(10,2), a tree of employees, composite keys, keys made by the database.
CREATE SCHEMA music;
CREATE TABLE music.artist (artist_id int PRIMARY KEY, name varchar(120));
CREATE TABLE music.album (
  album_id int PRIMARY KEY,
  title varchar(160) NOT NULL,
  artist_id int NOT NULL REFERENCES music.artist ON DELETE NO ACTION ON UPDATE NO ACTION
);
CREATE INDEX ON music.album (artist_id);
CREATE TABLE music.employee (
  employee_id int PRIMARY KEY,
  last_name varchar(20) NOT NULL,
  first_name varchar(20) NOT NULL,
  title varchar(30),
  reports_to int REFERENCES music.employee,
  born timestamp,
  email varchar(60)
);
CREATE UNIQUE INDEX employee_email ON music.employee (lower(email));
CREATE TABLE music.customer (
  customer_id int PRIMARY KEY,
  last_name varchar(20) NOT NULL,
  company varchar(80),
  email varchar(60) NOT NULL,
  support_rep_id int REFERENCES music.employee
);
CREATE TABLE music.genre (genre_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar(120) UNIQUE);
INSERT INTO music.genre (name) SELECT 'Genre ' || i FROM generate_series(1, 12) AS i;
CREATE TABLE music.track (
  track_id int PRIMARY KEY,
  name varchar(200) NOT NULL,
  album_id int REFERENCES music.album,
  genre_id int REFERENCES music.genre,
  milliseconds int NOT NULL,
  bytes int,
  unit_price numeric(10,2) NOT NULL
);
CREATE TABLE music.playlist (playlist_id int PRIMARY KEY, name varchar(120));
CREATE TABLE music.playlist_track (
  playlist_id int NOT NULL REFERENCES music.playlist,
  track_id int NOT NULL REFERENCES music.track,
  PRIMARY KEY (playlist_id, track_id)
);
CREATE TABLE music.invoice (
  invoice_id int PRIMARY KEY,
  customer_id int NOT NULL REFERENCES music.customer,
  invoiced timestamp NOT NULL,
  postal_code varchar(10),
  total numeric(10,2) NOT NULL CHECK (total >= 0)
);
