-- The e-mails to write. Each user gets each kind once, ever, because a key is appended only once.
SELECT user_id, email, 'welcome' AS email_type, 1 AS priority
FROM mart_user_segments
WHERE segment = 'new'
UNION ALL
SELECT user_id, email, 'win_back', 2
FROM mart_user_segments
WHERE segment IN ('dormant', 'churned') AND lifetime_value >= 500
UNION ALL
SELECT user_id, email, 'thank_you', 3
FROM mart_user_segments
WHERE segment = 'power' AND total_conversions >= 8
