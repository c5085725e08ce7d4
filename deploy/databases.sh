#!/bin/sh
# Creates a database for each service, and a role that owns it and has no other rights. Needs a superuser of PostgreSQL,
# given by psql's variables (PGHOST, PGUSER and so on). DATABASE_PASSWORD is the password of the roles. compose.yaml runs it
# once, when the volume is new.
set -eu
for name in users products orders; do
    psql -X -q -v ON_ERROR_STOP=1 -v name="$name" -v password="$DATABASE_PASSWORD" -d postgres <<'SQL'
create role :"name" login password :'password';
create database :"name" owner :"name" encoding 'UTF8' template template0;
revoke connect on database :"name" from public;
SQL
done
