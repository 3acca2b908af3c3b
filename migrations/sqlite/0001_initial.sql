-- min-release: 0.1.0
-- All tables. The same names, columns and rules as in postgres/0001_initial.sql; times are
-- microseconds since 1970, UTC; names compare bytewise.

-- The cluster itself: one row.
CREATE TABLE cluster (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    id            TEXT    NOT NULL,
    authority_pem TEXT,
    created_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE tenant (
    name       TEXT    PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT;

-- Credentials of controllers. Only the hash of a token is kept.
CREATE TABLE token (
    hash       BLOB    PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenant (name),
    name       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    UNIQUE (tenant, name)
) STRICT;

-- Running environment services. `epoch` is the lease: whoever holds the newest one may claim.
CREATE TABLE node (
    id           TEXT    PRIMARY KEY,
    name         TEXT    NOT NULL,
    address      TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    slots        INTEGER NOT NULL CHECK (slots >= 0),
    running      INTEGER NOT NULL CHECK (running >= 0),
    epoch        INTEGER NOT NULL CHECK (epoch > 0),
    renewals     INTEGER NOT NULL,
    lease_micros INTEGER NOT NULL CHECK (lease_micros > 0),
    lost         INTEGER NOT NULL CHECK (lost IN (0, 1)),
    draining     INTEGER NOT NULL CHECK (draining IN (0, 1)),
    not_claiming TEXT    NOT NULL,
    started_at   INTEGER NOT NULL,
    renewed_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE core_replica (
    id         TEXT    PRIMARY KEY,
    address    TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    epoch      INTEGER NOT NULL,
    renewals   INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL
) STRICT;

-- Immutable workflow binaries by digest (64 hexadecimal digits).
CREATE TABLE image (
    digest       TEXT    PRIMARY KEY,
    size         INTEGER NOT NULL CHECK (size > 0),
    workflows    TEXT    NOT NULL,
    sdk_version  TEXT    NOT NULL,
    architecture TEXT    NOT NULL,
    created_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE image_name (
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    number     INTEGER NOT NULL CHECK (number > 0),
    digest     TEXT    NOT NULL REFERENCES image (digest),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, version),
    UNIQUE (tenant, name, number)
) STRICT;
CREATE INDEX image_name_digest ON image_name (digest);

CREATE TABLE image_chunk (
    digest TEXT    NOT NULL REFERENCES image (digest) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    data   BLOB    NOT NULL,
    PRIMARY KEY (digest, number)
) STRICT;

-- The row that decides. It stays small: each transition writes it anew, so what the start
-- said and what the ending says stand in tables of their own. AUTOINCREMENT: a key is never
-- used again, so that a session of a deleted instance can never fit a new one.
CREATE TABLE instance (
    key              INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant           TEXT    NOT NULL,
    id               TEXT    NOT NULL,
    image_name       TEXT    NOT NULL,
    image_version    TEXT    NOT NULL,
    image_digest     TEXT    NOT NULL,
    workflow         TEXT    NOT NULL,
    priority         INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 9),
    state            TEXT    NOT NULL
        CHECK (state IN ('PENDING', 'RUNNING', 'SUSPENDED', 'COMPLETED', 'FAILED', 'CANCELLED')),
    waits            TEXT,
    wake_at          INTEGER,
    attempt          INTEGER NOT NULL CHECK (attempt >= 0),
    session          INTEGER NOT NULL CHECK (session >= 0),
    open             INTEGER NOT NULL CHECK (open IN (0, 1)),
    node             TEXT,
    paused           INTEGER NOT NULL CHECK (paused IN (0, 1)),
    cancel           TEXT    NOT NULL CHECK (cancel IN ('no', 'asked', 'felt')),
    cancel_at        INTEGER,
    crashes          INTEGER NOT NULL CHECK (crashes >= 0),
    deadline_at      INTEGER,
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    changed_at       INTEGER NOT NULL,
    ended_at         INTEGER,
    ended_by         TEXT CHECK (ended_by IN ('instance', 'controller', 'node', 'deadline')),
    version          INTEGER NOT NULL,
    progress_done    INTEGER,
    progress_total   INTEGER,
    progress_message TEXT,
    progress_at      INTEGER,
    UNIQUE (tenant, id),
    CHECK ((cancel = 'asked') = (cancel_at IS NOT NULL)),
    CHECK (state <> 'PENDING' OR (wake_at IS NOT NULL AND waits IS NULL AND (node IS NOT NULL) = open)),
    CHECK (state <> 'RUNNING' OR (wake_at IS NULL AND waits IS NULL AND node IS NOT NULL AND NOT open
                                  AND attempt > 0 AND session > 0)),
    CHECK (state <> 'SUSPENDED' OR (waits IS NOT NULL AND (node IS NOT NULL) = open AND attempt > 0
                                    AND (wake_at IS NOT NULL OR (NOT open AND cancel <> 'asked')))),
    CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (ended_at IS NOT NULL)),
    CHECK ((ended_at IS NOT NULL) = (ended_by IS NOT NULL)),
    CHECK (ended_at IS NULL OR (wake_at IS NULL AND waits IS NULL AND node IS NULL AND NOT open
                                AND NOT paused)),
    CHECK (NOT open OR (attempt > 0 AND session = 0))
) STRICT;
-- Claims: a range per priority, no sort; sleepers and paused ones cost nothing.
CREATE INDEX instance_wake ON instance (priority, wake_at, key) WHERE wake_at IS NOT NULL AND NOT paused;
CREATE INDEX instance_node ON instance (node, key) WHERE node IS NOT NULL;
CREATE INDEX instance_deadline ON instance (deadline_at, key) WHERE deadline_at IS NOT NULL AND ended_at IS NULL;
CREATE INDEX instance_ended ON instance (ended_at, key) WHERE ended_at IS NOT NULL;
CREATE INDEX instance_list ON instance (tenant, key);
CREATE INDEX instance_state ON instance (tenant, state, key);
CREATE INDEX instance_image ON instance (tenant, image_name, key);
CREATE INDEX instance_digest ON instance (image_digest) WHERE ended_at IS NULL;

-- What the start asked for; never changed. `fingerprint` tells a repeat from another start.
CREATE TABLE instance_start (
    instance    INTEGER PRIMARY KEY,
    input       BLOB    NOT NULL,
    encoding    TEXT    NOT NULL,
    type_name   TEXT    NOT NULL,
    env         TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL
) STRICT;

-- What the ending says; written once. An output or a failure, or neither (cancelled early).
CREATE TABLE instance_ending (
    instance  INTEGER PRIMARY KEY,
    output    BLOB,
    encoding  TEXT,
    type_name TEXT,
    code      TEXT,
    message   TEXT,
    retryable INTEGER CHECK (retryable IN (0, 1)),
    details   BLOB,
    CHECK ((output IS NULL) = (encoding IS NULL) AND (output IS NULL) = (type_name IS NULL)),
    CHECK ((code IS NULL) = (message IS NULL) AND (code IS NULL) = (retryable IS NULL)
           AND (code IS NULL) = (details IS NULL))
) STRICT;

-- One launch each. `instance` is no foreign key in the tables below: the writer holds the
-- instance's row lock, and deleting goes in small steps.
CREATE TABLE attempt (
    instance      INTEGER NOT NULL,
    attempt       INTEGER NOT NULL CHECK (attempt > 0),
    token_hash    BLOB    NOT NULL UNIQUE,
    node          TEXT    NOT NULL,
    wake_reason   TEXT    NOT NULL,
    claimed_at    INTEGER NOT NULL,
    registered_at INTEGER,
    ended_at      INTEGER,
    pid           INTEGER,
    exit_kind     TEXT,
    exit_value    INTEGER,
    exit_message  TEXT,
    stderr_tail   TEXT,
    PRIMARY KEY (instance, attempt)
) STRICT;

-- First writer wins. `number` counts 1, 2, 3 … per instance: the cursor of a resume.
CREATE TABLE checkpoint (
    instance  INTEGER NOT NULL,
    number    INTEGER NOT NULL CHECK (number > 0),
    name      TEXT    NOT NULL,
    op_key    TEXT    NOT NULL,
    slot      INTEGER NOT NULL CHECK (slot >= 0),
    kind      TEXT    NOT NULL,
    attempt   INTEGER NOT NULL,
    due_at    INTEGER,
    data      BLOB,
    encoding  TEXT,
    type_name TEXT,
    note      TEXT    NOT NULL,
    stored_at INTEGER NOT NULL,
    PRIMARY KEY (instance, name, op_key, slot),
    UNIQUE (instance, number),
    CHECK ((data IS NULL) = (encoding IS NULL) AND (data IS NULL) = (type_name IS NULL)),
    CHECK (data IS NULL OR due_at IS NULL)
) STRICT;

-- Consumed in the order of `number`, those of one name, each by one wait.
CREATE TABLE signal (
    instance    INTEGER NOT NULL,
    number      INTEGER NOT NULL CHECK (number > 0),
    name        TEXT    NOT NULL,
    dedup       TEXT    NOT NULL,
    data        BLOB    NOT NULL,
    encoding    TEXT    NOT NULL,
    type_name   TEXT    NOT NULL,
    sent_at     INTEGER NOT NULL,
    consumed_by INTEGER,
    consumed_at INTEGER,
    PRIMARY KEY (instance, number),
    CHECK ((consumed_by IS NULL) = (consumed_at IS NULL))
) STRICT;
CREATE INDEX signal_unread ON signal (instance, name, number) WHERE consumed_by IS NULL;
CREATE UNIQUE INDEX signal_dedup ON signal (instance, dedup) WHERE dedup <> '';

CREATE TABLE event (
    instance  INTEGER NOT NULL,
    number    INTEGER NOT NULL CHECK (number > 0),
    at        INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    message   TEXT    NOT NULL,
    data      BLOB,
    encoding  TEXT,
    type_name TEXT,
    PRIMARY KEY (instance, number),
    CHECK ((data IS NULL) = (encoding IS NULL) AND (data IS NULL) = (type_name IS NULL))
) STRICT;
