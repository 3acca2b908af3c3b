-- min-release: 0.2.0
-- Spares and reuse. Each new column has a default: the release before writes its rows without it.

-- Processes of an image version that stand ready for instances of it, and how many instances one process
-- may serve, one after the other. Off by default.
ALTER TABLE image_name ADD COLUMN spares INTEGER NOT NULL DEFAULT 0 CHECK (spares >= 0);
ALTER TABLE image_name ADD COLUMN reuse INTEGER NOT NULL DEFAULT 1 CHECK (reuse >= 1);
-- What a node asks for at each look, however many images there are.
CREATE INDEX image_name_kept ON image_name (tenant, name, version) WHERE spares > 0 OR reuse > 1;

-- With it a node signs what its spare processes prove themselves by; none: it never had a spare.
ALTER TABLE node ADD COLUMN spare_key BLOB;
