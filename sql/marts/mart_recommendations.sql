-- One row per user who ever searched: recommended destinations, and a score for the confidence.
WITH cities AS (
  SELECT ['Miami', 'Cancun', 'Lisbon', 'Oslo', 'Kyoto', 'Lima', 'Cairo', 'Québec'] AS names
)
SELECT
  user_id,
  [names[1 + taste % 8], names[1 + (taste + 1 + taste // 8 % 7) % 8]] AS destinations,
  CAST((50 + searches % 50) * 0.01 AS DECIMAL(3, 2)) AS score
FROM users, cities
WHERE searches > 0
