-- min-release: 0.2.0
-- Spares and reuse. Each new column has a default: the release before writes its rows without it.

-- Processes of an image version that stand ready for instances of it, and how many instances one process
-- may serve, one after the other. Off by default.
ALTER TABLE image_name ADD COLUMN spares BIGINT NOT NULL DEFAULT 0 CHECK (spares >= 0);
ALTER TABLE image_name ADD COLUMN reuse BIGINT NOT NULL DEFAULT 1 CHECK (reuse >= 1);
-- What a node asks for at each look, however many images there are.
CREATE INDEX image_name_kept ON image_name (tenant, name, version) WHERE spares > 0 OR reuse > 1;

-- With it a node signs what its spare processes prove themselves by; none: it never had a spare.
ALTER TABLE node ADD COLUMN spare_key BYTEA;

-- Growth. How many different values these columns have is said here and not counted: while there is one
-- tenant, or one state, PostgreSQL takes no notice of who names it, and reads over all the others that
-- came since.
ALTER TABLE instance
    ALTER COLUMN tenant SET (n_distinct = 100),
    ALTER COLUMN state SET (n_distinct = 100),
    ALTER COLUMN image_name SET (n_distinct = 100),
    ALTER COLUMN image_version SET (n_distinct = 100),
    ALTER COLUMN image_digest SET (n_distinct = 100),
    ALTER COLUMN node SET (n_distinct = 100);

-- What was claimed leaves a dead entry at the front of the wake index, and each claim begins there: with
-- 32,000 of them a look reads 225 pages. A fifth of a large table, the default, is far too many.
ALTER TABLE instance SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, vacuum_index_cleanup = on);
