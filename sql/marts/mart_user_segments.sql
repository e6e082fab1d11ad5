-- One row per user: the marketing segment, and the revenue so far.
SELECT
  user_id,
  email,
  CASE
    WHEN idle_days > 300 THEN 'churned'
    WHEN idle_days > 120 THEN 'dormant'
    WHEN signed_up_days <= 30 THEN 'new'
    WHEN searches >= 60 THEN 'power'
    ELSE 'casual'
  END AS segment,
  searches AS total_searches,
  conversions AS total_conversions,
  CAST(spent_cents * 0.01 AS DECIMAL(12, 2)) AS lifetime_value,
  CAST((SELECT run_date FROM sample) - idle_days AS TIMESTAMP) AS last_seen_at
FROM users
