-- min-release: 0.1.0
-- Several machines and several tenants. Each new column has a default: the release before
-- writes its rows without it.

-- Where the authority's key was made, for the message that says where certificates are issued.
ALTER TABLE cluster ADD COLUMN authority_host TEXT NOT NULL DEFAULT '';

-- Quotas; none where NULL. `start_credit` is the bucket of `starts_per_second`, in millionths
-- of a start, as it stood at `start_credit_at`.
ALTER TABLE tenant ADD COLUMN max_running INTEGER CHECK (max_running > 0);
ALTER TABLE tenant ADD COLUMN max_stored INTEGER CHECK (max_stored > 0);
ALTER TABLE tenant ADD COLUMN starts_per_second INTEGER CHECK (starts_per_second > 0);
ALTER TABLE tenant ADD COLUMN start_credit INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tenant ADD COLUMN start_credit_at INTEGER NOT NULL DEFAULT 0;

ALTER TABLE token ADD COLUMN role TEXT NOT NULL DEFAULT 'operator' CHECK (role IN ('reader', 'operator', 'admin'));

-- What controllers ask of a node; `draining` is what the node says of itself. It stays over a
-- restart of the node.
ALTER TABLE node ADD COLUMN drain TEXT NOT NULL DEFAULT 'no' CHECK (drain IN ('no', 'wait', 'suspend'));
ALTER TABLE node ADD COLUMN load_milli INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN memory_free_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN in_force TEXT NOT NULL DEFAULT '';

ALTER TABLE core_replica ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE core_replica ADD COLUMN lease_micros INTEGER NOT NULL DEFAULT 15000000 CHECK (lease_micros > 0);
ALTER TABLE core_replica ADD COLUMN sessions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE core_replica ADD COLUMN draining INTEGER NOT NULL DEFAULT 0 CHECK (draining IN (0, 1));

-- Into how many chunks the bytes were cut; 0: they are not, or not yet, in the database.
ALTER TABLE image ADD COLUMN chunks INTEGER NOT NULL DEFAULT 0;

-- The id of the ended instance that this one retries.
ALTER TABLE instance_start ADD COLUMN retry_of TEXT;

-- Claims while a tenant is at its quota: the others' wakes, without reading over the full one's.
CREATE INDEX instance_wake_tenant ON instance (tenant, priority, wake_at, key) WHERE wake_at IS NOT NULL AND NOT paused;
-- Whether any tenant has such a quota is asked by each claim.
CREATE INDEX tenant_running ON tenant (name) WHERE max_running IS NOT NULL;

-- Pruning of one tenant.
CREATE INDEX instance_ended_tenant ON instance (tenant, ended_at, key) WHERE ended_at IS NOT NULL;
