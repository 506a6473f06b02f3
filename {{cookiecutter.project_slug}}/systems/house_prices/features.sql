-- The market around each listing as of each moment: one row per row_id of `moments`.
--   moments: row_id, neighbourhood, listed_at    the rows that features are wanted for
--   events:  every listing, with the columns of data/raw
-- Only what was known before the moment may be read: earlier listings, and prices of sales that had closed.
-- The data step proves it by computing again with the future hidden.
-- The same text fills the online table, with one moment per neighbourhood: now.
SELECT
    moments.row_id,
    count(past.neighbourhood) FILTER (past.listed_at >= moments.listed_at - INTERVAL 30 DAY) AS nearby_listings_30d,
    count(past.price) FILTER (past.sold_at < moments.listed_at AND past.sold_at >= moments.listed_at - INTERVAL 30 DAY) AS nearby_sales_30d,
    median(past.price / past.area_m2)
        FILTER (past.sold_at < moments.listed_at AND past.sold_at >= moments.listed_at - INTERVAL 180 DAY) AS nearby_median_m2_180d,
    avg(past.price / past.area_m2)
        FILTER (past.sold_at < moments.listed_at AND past.sold_at >= moments.listed_at - INTERVAL 60 DAY) AS nearby_mean_m2_60d,
    avg(past.area_m2)
        FILTER (past.sold_at < moments.listed_at AND past.sold_at >= moments.listed_at - INTERVAL 180 DAY) AS nearby_mean_area_180d,
    date_diff('second', max(past.sold_at) FILTER (past.sold_at < moments.listed_at), any_value(moments.listed_at)) / 86400.0
        AS nearby_days_since_sale
FROM moments
LEFT JOIN events AS past
    ON past.neighbourhood = moments.neighbourhood
    AND past.listed_at < moments.listed_at
    AND past.listed_at >= moments.listed_at - INTERVAL 240 DAY  -- a sale of the last 180 days was listed up to 60 days before
GROUP BY moments.row_id
