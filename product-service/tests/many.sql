-- Fills an empty database with products, and with as many reservations of them. One reservation in twenty is released.
-- The settings `many.first` and `many.last` choose the rows to insert, of `many.rows` in total.
insert into products (id, name, folded_name, price, stock, version, created_at)
overriding system value
select
    n, name, lower(name), 99 + n * 7919 % 250000, 1000 + n % 100, 1 + n % 9,
    '2020-01-01'::timestamptz + n * interval '3 minutes'
from generate_series(current_setting('many.first')::bigint, current_setting('many.last')::bigint) as n,
    lateral (select concat_ws(' ',
        (array['Small', 'Large', 'Green', 'Folding', 'Oak', 'Steel', 'Quiet'])[1 + n % 7],
        (array['Lamp', 'Desk', 'Vase', 'Chair', 'Phone', 'Laptop', 'Kettle', 'Shelf'])[1 + n * 11 % 8],
        left(md5(n::text), 6)) as name) as called;

select setval(pg_get_serial_sequence('products', 'id'), current_setting('many.rows')::bigint);

insert into reservations (order_id, status, lines)
select
    overlay(md5(n::text) placing '0' || to_hex(1577836800000 + n * 180000) || '7' from 1 for 13)::uuid, -- UUIDv7
    case when n % 20 = 0 then 'released' else 'taken' end,
    format(
        '[{"product": %s, "name": "Oak Desk %1$s", "cents": %s, "quantity": %s}]',
        1 + n * 7919 % current_setting('many.rows')::bigint, 99 + n % 250000, 1 + n % 3
    )::jsonb
from generate_series(current_setting('many.first')::bigint, current_setting('many.last')::bigint) as n;
