-- Rows for schema.sql, the same on every run: 3 organizations, 30 accounts, 24 repositories, 6 teams, 72 folders.

INSERT INTO organization (id, login, default_repository_role) VALUES
    (1, 'acme', NULL),
    (2, 'globex', 'writer'),
    (3, 'initech', 'reader');

INSERT INTO account (id, login, suspended) VALUES
    (1, 'alice', false),
    (2, 'bob', false),
    (3, 'mallory', true);
INSERT INTO account (id, login)
SELECT id, 'user' || id FROM generate_series(4, 30) AS id;

-- Everybody belongs to one organization, every fifth to a second one; the first of each is its admin.
INSERT INTO organization_member (organization_id, account_id, role)
SELECT 1 + (id - 1) % 3, id, CASE WHEN id <= 3 THEN 'admin' ELSE 'member' END::organization_role FROM account;
INSERT INTO organization_member (organization_id, account_id)
SELECT 1 + id % 3, id FROM account WHERE id % 5 = 0;

INSERT INTO repository (id, organization_id, name, is_public)
SELECT id, 1 + (id - 1) % 3, 'repository' || id, id % 4 = 0 FROM generate_series(1, 24) AS id;

INSERT INTO repository_member (repository_id, account_id, role)
SELECT repository.id, 1 + (repository.id * 7) % 30, 'maintainer'::repository_role FROM repository
UNION ALL
SELECT repository.id, 1 + (repository.id * 7 + 1) % 30, 'writer' FROM repository;

INSERT INTO team (id, organization_id, slug)
SELECT id, 1 + (id - 1) % 3, 'team' || id FROM generate_series(1, 6) AS id;

INSERT INTO team_member (team_id, account_id)
SELECT team.id, account.id FROM team JOIN account ON account.id % 6 = team.id % 6;

INSERT INTO team_repository (team_id, repository_id, role)
SELECT team.id, repository.id, 'writer'
FROM team JOIN repository ON repository.organization_id = team.organization_id AND repository.id % 2 = team.id % 2;

-- Three levels in each repository.
INSERT INTO folder (id, repository_id, parent_id, name)
SELECT 3 * id - 2, id, NULL, 'src' FROM repository;
INSERT INTO folder (id, repository_id, parent_id, name)
SELECT 3 * id - 1, id, 3 * id - 2, 'store' FROM repository;
INSERT INTO folder (id, repository_id, parent_id, name)
SELECT 3 * id, id, 3 * id - 1, 'tests' FROM repository;
