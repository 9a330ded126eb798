-- What shows that the numbers are right, and the numbers of an earlier counter.

-- One row for each kind of check: its latest result. The page shows it.
CREATE TABLE evidence (
    kind       text        PRIMARY KEY CHECK (kind IN ('recount', 'restore')), -- footfall verify -record; the same on a restored backup
    agreed     boolean     NOT NULL,
    checked_at timestamptz NOT NULL DEFAULT now()
);

-- What footfall carry-over has added. It belongs to no day and to no row of
-- visitors, so it is part of the imported and of the forgotten ones as well.
ALTER TABLE totals
    ADD COLUMN carried_visits   bigint NOT NULL DEFAULT 0, -- part of visits
    ADD COLUMN carried_visitors bigint NOT NULL DEFAULT 0; -- part of visitors
