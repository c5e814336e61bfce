-- A small code-hosting application: organizations own repositories, people have roles in both, directly or through teams.
-- The example of examples/github; docker-compose.yml runs it when its PostgreSQL starts for the first time.

CREATE TYPE organization_role AS ENUM ('member', 'admin');
CREATE TYPE repository_role AS ENUM ('reader', 'writer', 'maintainer', 'admin');

CREATE TABLE organization (
    id                      bigint PRIMARY KEY,
    login                   text NOT NULL UNIQUE,
    -- NULL stands for the application's own default, reader.
    default_repository_role repository_role
);

CREATE TABLE account (
    id        bigint PRIMARY KEY,
    login     text NOT NULL UNIQUE,
    suspended boolean NOT NULL DEFAULT false
);

CREATE TABLE organization_member (
    organization_id bigint NOT NULL REFERENCES organization ON DELETE CASCADE,
    account_id      bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    role            organization_role NOT NULL DEFAULT 'member',
    PRIMARY KEY (organization_id, account_id)
);

CREATE TABLE repository (
    id              bigint PRIMARY KEY,
    organization_id bigint NOT NULL REFERENCES organization ON DELETE CASCADE,
    name            text NOT NULL,
    is_public       boolean NOT NULL DEFAULT false,
    UNIQUE (organization_id, name)
);

CREATE TABLE repository_member (
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    account_id    bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    role          repository_role NOT NULL,
    PRIMARY KEY (repository_id, account_id)
);

CREATE TABLE team (
    id              bigint PRIMARY KEY,
    organization_id bigint NOT NULL REFERENCES organization ON DELETE CASCADE,
    slug            text NOT NULL,
    UNIQUE (organization_id, slug)
);

CREATE TABLE team_member (
    team_id    bigint NOT NULL REFERENCES team ON DELETE CASCADE,
    account_id bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    PRIMARY KEY (team_id, account_id)
);

CREATE TABLE team_repository (
    team_id       bigint NOT NULL REFERENCES team ON DELETE CASCADE,
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    role          repository_role NOT NULL,
    PRIMARY KEY (team_id, repository_id)
);

CREATE TABLE folder (
    id            bigint PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    -- NULL at the top of a repository.
    parent_id     bigint REFERENCES folder ON DELETE CASCADE,
    name          text NOT NULL
);
