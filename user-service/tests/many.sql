-- Fills an empty database with users. Four in five have an account.
-- The settings `many.first` and `many.last` choose the rows to insert, of `many.rows` in total.
insert into users (id, name, username, folded_username, email, folded_email, password_hash, version, created_at)
overriding system value
select
    n, first_name || ' ' || last_name, username, lower(username), email, lower(email),
    '$argon2id$v=19$m=19456,t=2,p=1$' || repeat(md5(username), 2), 1 + n % 3,
    '2020-01-01'::timestamptz + n * interval '3 minutes'
from generate_series(current_setting('many.first')::bigint, current_setting('many.last')::bigint) as n,
    lateral (select
        (array['Ada', 'Bo', 'Chen', 'Dolores', 'Éva', 'Farid', 'Grace', 'Hedwig'])[1 + n * 7 % 8] as first_name,
        (array['Lovelace', 'Ng', 'García', 'Nwosu', 'Ivanova', 'Smith', 'Turing'])[1 + n * 11 % 7] as last_name) as called,
    lateral (select case when n % 5 > 0 then first_name || n end as username) as account,
    lateral (select username || '.' || last_name || '@Example.com' as email) as reached;

select setval(pg_get_serial_sequence('users', 'id'), current_setting('many.rows')::bigint);
