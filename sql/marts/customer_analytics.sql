-- One row per paying customer and day, for today and yesterday: how likely the customer is to leave.
WITH days AS (
  SELECT run_date - ago AS run_date, ago
  FROM sample, (VALUES (0), (1)) AS back (ago)
),
measured AS (
  SELECT
    run_date,
    number AS customer_id,
    CAST(spent_cents * 0.01 AS DECIMAL(10, 2)) AS lifetime_value,
    least(greatest(idle_days - ago, 0) * 2 + taste % 200, 1000) AS churn_permille,
    least(searches * 8 + conversions * 3, 1000) AS engagement_permille,
    greatest(idle_days - ago, 0) + taste % 30 AS last_purchase_days
  FROM users, days
  WHERE spent_cents > 0
)
SELECT
  run_date,
  customer_id,
  CASE
    WHEN churn_permille >= 900 THEN 'lost'
    WHEN churn_permille >= 700 THEN 'at_risk'
    WHEN lifetime_value >= 1500 THEN 'vip'
    WHEN engagement_permille >= 400 THEN 'loyal'
    ELSE 'occasional'
  END AS segment,
  lifetime_value,
  CAST(churn_permille * 0.001 AS DECIMAL(5, 3)) AS churn_probability,
  CASE WHEN churn_permille >= 700 THEN 'high' WHEN churn_permille >= 400 THEN 'medium' ELSE 'low' END
    AS churn_risk_level,
  CAST(engagement_permille * 0.001 AS DECIMAL(5, 3)) AS engagement_score,
  last_purchase_days,
  CASE WHEN churn_permille < 900 THEN 3 + last_purchase_days // 2 END AS predicted_next_purchase_days
FROM measured
