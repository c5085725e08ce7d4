-- Who there is.
create table users (
    -- They rise, and none is given twice. A refused insert uses one up, so there are gaps.
    id bigint generated always as identity constraint users_pkey primary key,
    -- What people see.
    name text not null,
    -- The account, if there is one: as it was written, and as it is compared. The service folds, for no collation is sure
    -- to do it alike; "C" compares bytes, and no new version of a collation breaks its index.
    username text,
    username_folded text collate "C",
    email text,
    email_folded text collate "C",
    -- A PHC string, never a password.
    password_hash text,
    -- Counts the changes: one is made only to the state that was seen.
    version bigint not null,
    created_at timestamptz not null,

    -- The service tells these two apart by their names. If both are broken at once PostgreSQL reports either; in this order
    -- it is likely the e-mail, so that the tests see the service look whether the username is taken too.
    constraint users_email_unique unique (email_folded),
    constraint users_username_unique unique (username_folded),
    constraint users_username_and_folded check ((username is null) = (username_folded is null)),
    constraint users_email_and_folded check ((email is null) = (email_folded is null))
);
