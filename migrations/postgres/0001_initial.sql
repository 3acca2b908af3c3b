-- min-release: 0.1.0
-- All tables. The same names, columns and rules as in sqlite/0001_initial.sql; times are
-- microseconds since 1970, UTC; names compare bytewise.

-- The cluster itself: one row.
CREATE TABLE cluster (
    one           BIGINT PRIMARY KEY CHECK (one = 1),
    id            TEXT COLLATE "C" NOT NULL,
    authority_pem TEXT COLLATE "C",
    created_at    BIGINT NOT NULL
);

CREATE TABLE tenant (
    name       TEXT COLLATE "C" PRIMARY KEY,
    created_at BIGINT NOT NULL
);

-- Credentials of controllers. Only the hash of a token is kept.
CREATE TABLE token (
    hash       BYTEA PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL REFERENCES tenant (name),
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    UNIQUE (tenant, name)
);

-- Running environment services. `epoch` is the lease: whoever holds the newest one may claim.
CREATE TABLE node (
    id           TEXT COLLATE "C" PRIMARY KEY,
    name         TEXT COLLATE "C" NOT NULL,
    address      TEXT COLLATE "C" NOT NULL,
    version      TEXT COLLATE "C" NOT NULL,
    slots        BIGINT NOT NULL CHECK (slots >= 0),
    running      BIGINT NOT NULL CHECK (running >= 0),
    epoch        BIGINT NOT NULL CHECK (epoch > 0),
    renewals     BIGINT NOT NULL,
    lease_micros BIGINT NOT NULL CHECK (lease_micros > 0),
    lost         BOOLEAN NOT NULL,
    draining     BOOLEAN NOT NULL,
    not_claiming TEXT COLLATE "C" NOT NULL,
    started_at   BIGINT NOT NULL,
    renewed_at   BIGINT NOT NULL
);

CREATE TABLE core_replica (
    id         TEXT COLLATE "C" PRIMARY KEY,
    address    TEXT COLLATE "C" NOT NULL,
    version    TEXT COLLATE "C" NOT NULL,
    epoch      BIGINT NOT NULL,
    renewals   BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    renewed_at BIGINT NOT NULL
);

-- Immutable workflow binaries by digest (64 hexadecimal digits).
CREATE TABLE image (
    digest       TEXT COLLATE "C" PRIMARY KEY,
    size         BIGINT NOT NULL CHECK (size > 0),
    workflows    TEXT COLLATE "C" NOT NULL,
    sdk_version  TEXT COLLATE "C" NOT NULL,
    architecture TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL
);

CREATE TABLE image_name (
    tenant     TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    version    TEXT COLLATE "C" NOT NULL,
    number     BIGINT NOT NULL CHECK (number > 0),
    digest     TEXT COLLATE "C" NOT NULL REFERENCES image (digest),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name, version),
    UNIQUE (tenant, name, number)
);
CREATE INDEX image_name_digest ON image_name (digest);

CREATE TABLE image_chunk (
    digest TEXT COLLATE "C" NOT NULL REFERENCES image (digest) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    data   BYTEA NOT NULL,
    PRIMARY KEY (digest, number)
);

-- The row that decides. It stays small: each transition writes it anew, so what the start
-- said and what the ending says stand in tables of their own. An identity: a key is never
-- used again, so that a session of a deleted instance can never fit a new one.
CREATE TABLE instance (
    key              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant           TEXT COLLATE "C" NOT NULL,
    id               TEXT COLLATE "C" NOT NULL,
    image_name       TEXT COLLATE "C" NOT NULL,
    image_version    TEXT COLLATE "C" NOT NULL,
    image_digest     TEXT COLLATE "C" NOT NULL,
    workflow         TEXT COLLATE "C" NOT NULL,
    priority         BIGINT NOT NULL CHECK (priority BETWEEN 0 AND 9),
    state            TEXT COLLATE "C" NOT NULL
        CHECK (state IN ('PENDING', 'RUNNING', 'SUSPENDED', 'COMPLETED', 'FAILED', 'CANCELLED')),
    waits            TEXT COLLATE "C",
    wake_at          BIGINT,
    attempt          BIGINT NOT NULL CHECK (attempt >= 0),
    session          BIGINT NOT NULL CHECK (session >= 0),
    open             BOOLEAN NOT NULL,
    node             TEXT COLLATE "C",
    paused           BOOLEAN NOT NULL,
    cancel           TEXT COLLATE "C" NOT NULL CHECK (cancel IN ('no', 'asked', 'felt')),
    cancel_at        BIGINT,
    crashes          BIGINT NOT NULL CHECK (crashes >= 0),
    deadline_at      BIGINT,
    created_at       BIGINT NOT NULL,
    started_at       BIGINT,
    changed_at       BIGINT NOT NULL,
    ended_at         BIGINT,
    ended_by         TEXT COLLATE "C" CHECK (ended_by IN ('instance', 'controller', 'node', 'deadline')),
    version          BIGINT NOT NULL,
    progress_done    BIGINT,
    progress_total   BIGINT,
    progress_message TEXT COLLATE "C",
    progress_at      BIGINT,
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
);
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
    instance    BIGINT PRIMARY KEY,
    input       BYTEA NOT NULL,
    encoding    TEXT COLLATE "C" NOT NULL,
    type_name   TEXT COLLATE "C" NOT NULL,
    env         TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA NOT NULL
);

-- What the ending says; written once. An output or a failure, or neither (cancelled early).
CREATE TABLE instance_ending (
    instance  BIGINT PRIMARY KEY,
    output    BYTEA,
    encoding  TEXT COLLATE "C",
    type_name TEXT COLLATE "C",
    code      TEXT COLLATE "C",
    message   TEXT COLLATE "C",
    retryable BOOLEAN,
    details   BYTEA,
    CHECK ((output IS NULL) = (encoding IS NULL) AND (output IS NULL) = (type_name IS NULL)),
    CHECK ((code IS NULL) = (message IS NULL) AND (code IS NULL) = (retryable IS NULL)
           AND (code IS NULL) = (details IS NULL))
);

-- One launch each. `instance` is no foreign key in the tables below: the writer holds the
-- instance's row lock, and deleting goes in small steps.
CREATE TABLE attempt (
    instance      BIGINT NOT NULL,
    attempt       BIGINT NOT NULL CHECK (attempt > 0),
    token_hash    BYTEA NOT NULL UNIQUE,
    node          TEXT COLLATE "C" NOT NULL,
    wake_reason   TEXT COLLATE "C" NOT NULL,
    claimed_at    BIGINT NOT NULL,
    registered_at BIGINT,
    ended_at      BIGINT,
    pid           BIGINT,
    exit_kind     TEXT COLLATE "C",
    exit_value    BIGINT,
    exit_message  TEXT COLLATE "C",
    stderr_tail   TEXT COLLATE "C",
    PRIMARY KEY (instance, attempt)
);

-- First writer wins. `number` counts 1, 2, 3 … per instance: the cursor of a resume.
CREATE TABLE checkpoint (
    instance  BIGINT NOT NULL,
    number    BIGINT NOT NULL CHECK (number > 0),
    name      TEXT COLLATE "C" NOT NULL,
    op_key    TEXT COLLATE "C" NOT NULL,
    slot      BIGINT NOT NULL CHECK (slot >= 0),
    kind      TEXT COLLATE "C" NOT NULL,
    attempt   BIGINT NOT NULL,
    due_at    BIGINT,
    data      BYTEA,
    encoding  TEXT COLLATE "C",
    type_name TEXT COLLATE "C",
    note      TEXT COLLATE "C" NOT NULL,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (instance, name, op_key, slot),
    UNIQUE (instance, number),
    CHECK ((data IS NULL) = (encoding IS NULL) AND (data IS NULL) = (type_name IS NULL)),
    CHECK (data IS NULL OR due_at IS NULL)
);

-- Consumed in the order of `number`, those of one name, each by one wait.
CREATE TABLE signal (
    instance    BIGINT NOT NULL,
    number      BIGINT NOT NULL CHECK (number > 0),
    name        TEXT COLLATE "C" NOT NULL,
    dedup       TEXT COLLATE "C" NOT NULL,
    data        BYTEA NOT NULL,
    encoding    TEXT COLLATE "C" NOT NULL,
    type_name   TEXT COLLATE "C" NOT NULL,
    sent_at     BIGINT NOT NULL,
    consumed_by BIGINT,
    consumed_at BIGINT,
    PRIMARY KEY (instance, number),
    CHECK ((consumed_by IS NULL) = (consumed_at IS NULL))
);
CREATE INDEX signal_unread ON signal (instance, name, number) WHERE consumed_by IS NULL;
CREATE UNIQUE INDEX signal_dedup ON signal (instance, dedup) WHERE dedup <> '';

CREATE TABLE event (
    instance  BIGINT NOT NULL,
    number    BIGINT NOT NULL CHECK (number > 0),
    at        BIGINT NOT NULL,
    attempt   BIGINT NOT NULL,
    kind      TEXT COLLATE "C" NOT NULL,
    message   TEXT COLLATE "C" NOT NULL,
    data      BYTEA,
    encoding  TEXT COLLATE "C",
    type_name TEXT COLLATE "C",
    PRIMARY KEY (instance, number),
    CHECK ((data IS NULL) = (encoding IS NULL) AND (data IS NULL) = (type_name IS NULL))
);
