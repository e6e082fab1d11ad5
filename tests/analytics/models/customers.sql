select * from (values
    (1, 'ada@example.com', 'vip',   1200.50::decimal(12, 2), timestamptz '2026-11-20 08:00:00+00', ['a', 'b']),
    (2, 'bob@example.com', 'loyal',  310.00::decimal(12, 2), timestamptz '2026-11-19 09:30:00+00', []),
    (3, null,              'lost',    45.90::decimal(12, 2), null,                                 null)
) as made (customer_id, email, segment, spent, seen_at, labels)
