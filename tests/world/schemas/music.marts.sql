-- album
SELECT i AS album_id, 'Album ' || i || ' of ' || $day AS title, 1 + i % 20 AS artist_id FROM range(1, 31) t(i);
-- artist
SELECT i AS artist_id, CASE WHEN i % 9 > 0 THEN 'Artist ' || i END AS name FROM range(1, 26 - $day) t(i);
-- customer
SELECT i AS customer_id, 'Customer ' || i AS last_name, CASE WHEN i % 2 = $day % 2 THEN 'Company ' || i END AS company, 'c' || i || '@example.com' AS email, 1 + i % 12 AS support_rep_id FROM range(1, 40) t(i);
-- employee
SELECT i AS employee_id, 'Last ' || i AS last_name, 'First' AS first_name, 'Title ' || $day AS title, CASE WHEN i < 30 THEN i + 1 + i % 2 * $day END AS reports_to, TIMESTAMP '1980-01-01' + to_days(i::INTEGER) AS born, 'E' || ((i + $day) % 33) || '@example.com' AS email FROM range(1, 34) t(i) WHERE i <> 33 OR $day = 1;
-- genre: write: update_only
SELECT i AS genre_id, 'Genre ' || (1 + (i + $day - 1) % 12) AS name FROM range(1, 13) t(i);
-- invoice
SELECT i AS invoice_id, 1 + i % 39 AS customer_id, TIMESTAMP '2026-01-01 12:00:00.123456' + to_days(i::INTEGER) AS invoiced, 'P' || i AS postal_code, (i * 1.1 + $day)::DECIMAL(10,2) AS total FROM range(60) t(i) WHERE i % 20 <> $day;
-- playlist
SELECT i AS playlist_id, 'Playlist ' || i AS name FROM range(1, 9 - $day) t(i);
-- playlist_track
SELECT 1 + i % 6 AS playlist_id, 1 + i // 6 AS track_id FROM range(60) t(i) WHERE i % 11 <> $day;
-- track
SELECT i AS track_id, 'Track ' || i AS name, 1 + i % 30 AS album_id, 1 + i % 12 AS genre_id, 200000 + i * $day AS milliseconds, CASE WHEN i % 5 > 0 THEN 3000000 + i END AS bytes, (0.99 + i % 2)::DECIMAL(10,2) AS unit_price FROM range(1, 51) t(i);
