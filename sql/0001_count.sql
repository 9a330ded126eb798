-- What footfall counts, and nothing more. All days are UTC days.

-- One row a visitor. Only days are kept, not times: enough to count by.
CREATE TABLE visitors (
    id              bytea   PRIMARY KEY,            -- first 16 bytes of HMAC-SHA-256(visitor key, address); never an address
    visits          bigint  NOT NULL,
    first_seen      date,                           -- day of the first visit; NULL: before counting by day began (imported)
    last_seen       date,                           -- latest day with a visit; NULL: none since the import
    seen_day_before boolean NOT NULL DEFAULT false, -- also seen on the day before last_seen: decides a visit that arrives after midnight's
    first_of_day    boolean NOT NULL DEFAULT true   -- the latest batch was this visitor's first on its day: read only by the statement that sets it
) WITH (
    -- Updates stay on their page (HOT: no index is touched) while it has room.
    fillfactor = 90,
    -- The defaults wait for a fifth of the table to change: 20 million rows of 100 million.
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- One row a day with visits.
CREATE TABLE days (
    day          date   PRIMARY KEY,
    visits       bigint NOT NULL,
    visitors     bigint NOT NULL, -- different visitors on this day
    new_visitors bigint NOT NULL  -- of them, those never seen before
) WITH (fillfactor = 10); -- every batch updates today's row: a page mostly empty keeps the old versions beside it

-- Exactly one row: the sums over all visitors, kept so that no request counts rows.
CREATE TABLE totals (
    one               boolean     PRIMARY KEY DEFAULT true CHECK (one),
    visits            bigint      NOT NULL DEFAULT 0,
    visitors          bigint      NOT NULL DEFAULT 0,
    imported_visits   bigint      NOT NULL DEFAULT 0, -- part of visits that belongs to no day
    imported_visitors bigint      NOT NULL DEFAULT 0, -- part of visitors that belongs to no day
    since             timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
INSERT INTO totals DEFAULT VALUES;

-- One row a running process, gone a day after its last batch. A batch moves its
-- writer's row from batch n-1 to n in its own transaction, so a batch that is
-- sent twice applies once.
CREATE TABLE writers (
    id           bigint      PRIMARY KEY,            -- random: a restored database has forgotten some, and must not give one out twice
    batch        bigint      NOT NULL DEFAULT 0,     -- number of the last batch applied
    receipt      bigint[]    NOT NULL DEFAULT '{}',  -- its answer, for the case that the connection broke before it arrived
    committed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

-- The visitor key or its fingerprint, and the report of an import.
CREATE TABLE settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);
