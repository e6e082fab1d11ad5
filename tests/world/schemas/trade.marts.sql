-- category
SELECT i::SMALLINT AS category_id, 'Category ' || i AS name, 'Day ' || $day AS description, ('\x00' || i)::BLOB AS picture FROM range(1, 9) t(i);
-- customer
SELECT 'C' || lpad(i::VARCHAR, 4, '0') AS customer_id, 'Company ' || i AS company, 'City ' || (i + $day) AS city, NULL::VARCHAR AS phone, '10.0.0.' || i AS last_seen_from FROM range(1, 41 - $day) t(i);
-- customer_kind
SELECT 'C' || lpad((1 + i // 2)::VARCHAR, 4, '0') AS customer_id, 'K' || (i % 2) AS kind FROM range(40) t(i) WHERE i % 13 <> $day;
-- employee
SELECT i::SMALLINT AS employee_id, 'Last ' || i AS last_name, DATE '2020-01-01' + i::INTEGER AS hired, TIME '08:00:00' + to_minutes(i) AS starts, {'day': $day, 'n': i}::JSON AS notes, CASE WHEN i < 9 THEN i + 1 END::SMALLINT AS reports_to FROM range(1, 10) t(i);
-- order_line
SELECT 10000 + i // 2 AS order_id, (1 + i % 20)::SMALLINT AS product_id, (1 + i * 0.1 + $day)::FLOAT AS unit_price, (1 + i % 7)::SMALLINT AS quantity, (i % 4) * 0.05 AS discount FROM range(60) t(i) WHERE i % 17 <> $day;
-- orders
SELECT 10000 + i AS order_id, 'C' || lpad((1 + i % 30)::VARCHAR, 4, '0') AS customer_id, (1 + i % 9)::SMALLINT AS employee_id, DATE '2026-01-01' + i::INTEGER AS ordered, (i * 1.1)::FLOAT AS freight, CASE WHEN i % 2 = $day % 2 THEN 'R' || i END AS ship_region FROM range(40 - $day) t(i);
-- product
SELECT i::SMALLINT AS product_id, 'Product ' || i AS name, ('00000000-0000-0000-0000-' || lpad((1 + i % 5)::VARCHAR, 12, '0'))::UUID AS supplier_id, (1 + i % 8)::SMALLINT AS category_id, (9.99 + i)::FLOAT AS unit_price, (i * $day)::SMALLINT AS in_stock, i % 2 AS discontinued FROM range(1, 26) t(i);
-- region
SELECT i::SMALLINT AS region_id, 'Region ' || i || ' of ' || $day AS description FROM range(1, 5) t(i);
-- supplier
SELECT ('00000000-0000-0000-0000-' || lpad(i::VARCHAR, 12, '0'))::UUID AS supplier_id, 'Supplier ' || i AS company, 'https://example.com/' || $day AS homepage FROM range(1, 8) t(i);
-- territory
SELECT 'T' || i AS territory_id, 'Territory ' || i AS description, (1 + (i + $day) % 4)::SMALLINT AS region_id FROM range(50 - $day) t(i);
