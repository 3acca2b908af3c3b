-- min-release: 0.2.0
-- Spares and reuse. Each new column has a default: the release before writes its rows without it.

-- Processes of an image that stand ready for instances of it, and how many instances one process
-- may serve, one after the other. Off by default.
ALTER TABLE image_name ADD COLUMN spares BIGINT NOT NULL DEFAULT 0 CHECK (spares >= 0);
ALTER TABLE image_name ADD COLUMN reuse BIGINT NOT NULL DEFAULT 1 CHECK (reuse >= 1);
