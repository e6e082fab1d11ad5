-- The products that fit each paying customer, with scores: 3 to 8 products, no two scores equal.
SELECT
  number AS customer_id,
  format('p{:03d}', (number * 31 + offer * 17) % 500) AS product_id,
  CAST((500 + (taste // 13 + offer * 53) % 500) * 0.001 AS DECIMAL(5, 3)) AS recommendation_score,
  CASE offer % 3 WHEN 0 THEN 'bought_together' WHEN 1 THEN 'similar_customers' ELSE 'recently_viewed' END
    AS recommendation_reason
FROM users, range(8) AS offered (offer)
WHERE spent_cents > 0 AND offer < offers
