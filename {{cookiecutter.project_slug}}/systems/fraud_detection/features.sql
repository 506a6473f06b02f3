-- The history of each card as of each moment: one row per row_id of `moments`.
--   moments: row_id, card_id, paid_at        the rows that features are wanted for
--   events:  every payment, with the columns of data/raw
-- Only what was known before the moment may be read: earlier events, and labels that had arrived.
-- The data step proves it by computing again with the future hidden.
-- The same text fills the online table, with one moment per card: now.
SELECT
    moments.row_id,
    count(past.card_id) FILTER (past.paid_at >= moments.paid_at - INTERVAL 1 HOUR) AS card_payments_1h,
    count(past.card_id) FILTER (past.paid_at >= moments.paid_at - INTERVAL 24 HOUR) AS card_payments_24h,
    sum(past.amount) FILTER (past.paid_at >= moments.paid_at - INTERVAL 24 HOUR) AS card_amount_24h,
    avg(past.amount) AS card_mean_amount_30d,
    avg(CASE WHEN past.country = 'abroad' THEN 1.0 WHEN past.country IS NOT NULL THEN 0.0 END) AS card_abroad_share_30d,
    count(past.card_id) FILTER (past.is_fraud AND past.label_known_at < moments.paid_at) AS card_known_frauds,
    date_diff('second', max(past.paid_at), any_value(moments.paid_at)) / 3600.0 AS card_hours_since_last
FROM moments
LEFT JOIN events AS past
    ON past.card_id = moments.card_id
    AND past.paid_at < moments.paid_at
    AND past.paid_at >= moments.paid_at - INTERVAL 30 DAY
GROUP BY moments.row_id
