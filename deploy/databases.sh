#!/bin/sh
# A database for each service, and a role that owns it and may do nothing else. It is run by a superuser of PostgreSQL,
# which is found as psql finds it (PGHOST, PGUSER and so on); DATABASE_PASSWORD is the roles'. compose.yaml has it run
# once, when the volume is new.
set -eu
for name in users products orders; do
    psql -X -q -v ON_ERROR_STOP=1 -v name="$name" -v password="$DATABASE_PASSWORD" -d postgres <<'SQL'
create role :"name" login password :'password';
create database :"name" owner :"name" encoding 'UTF8' template template0;
revoke connect on database :"name" from public;
SQL
done
