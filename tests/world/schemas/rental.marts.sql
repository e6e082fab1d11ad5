-- actor
SELECT i::INTEGER AS actor_id, 'First ' || i AS first_name, 'Last ' || (i + $day) AS last_name FROM range(1, 31 + $day) t(i);
-- address
SELECT i AS address_id, 'Street ' || i AS street, CASE WHEN i % 3 = $day % 3 THEN 'Floor ' || $day END AS street2, 1 + i % 20 AS city_id, '0' || i AS phone FROM range(1, 31 + $day) t(i);
-- cast_list
SELECT 1 + i % 10 AS actor_id, 1 + i // 10 AS film_id FROM range(40) t(i) WHERE i % 7 <> $day;
-- city
SELECT i AS city_id, 'City ' || i || CASE WHEN i % 5 = $day THEN ' (new)' ELSE '' END AS name, 1 + i % 10 AS country_id FROM range(1, 27 - 2 * $day) t(i);
-- contact
SELECT i AS contact_id, 'Contact ' || i AS name, 'c' || ((i + $day) % 30) || '@example.com' AS email FROM range(30) t(i);
-- country
SELECT i AS country_id, 'Country ' || i || ' of ' || $day AS name FROM range(1, 13 + $day) t(i);
-- film
SELECT i AS film_id, 'Film ' || i AS title, 'A plot with ' || (i * $day) || ' turns' AS plot, 1990 + i AS released, 1 + i % 3 AS language_id, CASE WHEN i % 4 = 0 THEN 2 END AS dubbed_id, 3 + i % 4 AS days, (1.99 + i % 5)::DECIMAL(4,2) AS rate, 60 + i AS minutes, ['G', 'PG', 'PG-13', 'R', 'NC-17'][1 + (i + $day) % 5] AS rating, ['Trailers', 'Scenes ' || i] AS extras FROM range(1, 21 + $day) t(i);
-- language
SELECT i AS language_id, ['English', 'French', 'German', 'Italian'][i] AS name FROM range(1, 4) t(i);
-- loan
SELECT i AS loan_id, 1 + i % 15 AS film_id, '["2026-01-0' || (1 + i % 9) || ' 00:00:00+00","2026-02-01 00:00:00+00")' AS during, CASE WHEN i % 2 = 0 THEN ($day || ' days') END AS reminder FROM range(20) t(i) WHERE i <> $day;
-- payment
SELECT i AS payment_id, 1 + i % 4 AS staff_id, ((i * 37 + $day) % 900 / 100)::DECIMAL(5,2) AS amount, TIMESTAMPTZ '2026-01-20 00:00:00+00' + to_days(i::INTEGER) AS paid_at FROM range(40) t(i) WHERE i % 9 <> $day;
-- staff
SELECT i AS staff_id, 'Staff ' || i AS first_name, i % 3 <> $day AS active, ('picture ' || i || $day)::BLOB AS picture FROM range(1, 8) t(i);
-- staff, as staff_stores: write: update_only
SELECT i AS staff_id, 1 + i % 2 AS store_id FROM range(1, 8) t(i);
-- store
SELECT i AS store_id, CASE WHEN $day = 1 THEN i ELSE 3 - i END AS manager_id, i AS address_id FROM range(1, 3) t(i);
