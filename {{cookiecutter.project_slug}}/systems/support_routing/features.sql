-- The history of each customer as of each moment: one row per row_id of `moments`.
--   moments: row_id, customer_id, opened_at      the rows that features are wanted for
--   events:  every ticket, with the columns of data/raw
-- Only what was known before the moment may be read: earlier tickets, and departments of tickets that were resolved.
-- The data step proves it by computing again with the future hidden.
-- The same text fills the online table, with one moment per customer: now.
SELECT
    moments.row_id,
    count(past.customer_id) FILTER (past.opened_at >= moments.opened_at - INTERVAL 7 DAY) AS customer_tickets_7d,
    count(past.customer_id) AS customer_tickets_30d,
    max_by(past.department, past.resolved_at) FILTER (past.resolved_at < moments.opened_at) AS customer_last_department,
    date_diff('second', max(past.resolved_at) FILTER (past.resolved_at < moments.opened_at), any_value(moments.opened_at)) / 86400.0
        AS customer_days_since_resolved,
    -- shares of the tickets solved by then; sales is what is left. 90 days tell no more, and remember departments as they were for three times as long
    avg((past.department = 'billing')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_billing_share_30d,
    avg((past.department = 'delivery')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_delivery_share_30d,
    avg((past.department = 'returns')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_returns_share_30d,
    avg((past.department = 'technical')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_technical_share_30d,
    avg((past.department = 'account')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_account_share_30d,
    avg((past.department = 'security')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_security_share_30d,
    avg((past.department = 'contracts')::DOUBLE) FILTER (past.resolved_at < moments.opened_at) AS customer_contracts_share_30d
FROM moments
LEFT JOIN events AS past
    ON past.customer_id = moments.customer_id
    AND past.opened_at < moments.opened_at
    AND past.opened_at >= moments.opened_at - INTERVAL 30 DAY
GROUP BY moments.row_id
