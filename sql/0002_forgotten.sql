-- What footfall forget has removed from visitors, so that a recount still comes
-- out: the totals and the days keep the visits of a forgotten visitor. Locked in
-- the order of a batch, days before totals. A constant default rewrites no table,
-- and a program that does not know the columns leaves them at 0.

ALTER TABLE days
    ADD COLUMN forgotten     bigint NOT NULL DEFAULT 0, -- part of visitors without a row; kept for the forgotten's last day and the day before it
    ADD COLUMN forgotten_new bigint NOT NULL DEFAULT 0; -- part of new_visitors without a row

ALTER TABLE totals
    ADD COLUMN forgotten_visits   bigint NOT NULL DEFAULT 0, -- part of visits without a row
    ADD COLUMN forgotten_visitors bigint NOT NULL DEFAULT 0; -- part of visitors without a row
