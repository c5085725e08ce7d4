-- The users and their accounts.
create table users (
    -- Ids rise and are never used again, not even after a removal. A rejected insert uses one up, so there are gaps.
    id bigint generated always as identity constraint users_pkey primary key,
    name text not null,
    -- The account, if the user has one: each name as it was written, and in the form in which it is compared. The service
    -- folds the names, so that the result does not depend on a locale. With "C" an index compares bytes, so a new version
    -- of a collation cannot break it.
    username text,
    folded_username text collate "C",
    email text,
    folded_email text collate "C",
    -- A PHC string, never a password.
    password_hash text,
    -- The number of changes. A write names the version that it is based on.
    version bigint not null,
    created_at timestamptz not null,

    -- The service tells these two apart by their names. If a row violates both, PostgreSQL is likely to report the one that
    -- is declared first. The tests rely on it: only after users_email_unique does the service look at the username too.
    constraint users_email_unique unique (folded_email),
    constraint users_username_unique unique (folded_username),
    constraint users_username_folded check ((username is null) = (folded_username is null)),
    constraint users_email_folded check ((email is null) = (folded_email is null))
);
