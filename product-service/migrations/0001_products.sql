-- The products, and the units of them that are free to sell.

-- Index for the search by a part of the name. A trusted extension: the owner of a database may create it.
create extension if not exists pg_trgm;

create table products (
    -- Ids rise and are never used again, not even after a removal.
    id bigint generated always as identity constraint products_pkey primary key,
    name text not null,
    -- The name without case, for the search. The service folds it, so that the result does not depend on a locale.
    folded_name text not null,
    -- In cents.
    price bigint not null constraint products_price_not_negative check (price >= 0),
    -- The units that no order holds. The check is a safeguard: no statement of the service violates it.
    stock bigint not null constraint products_stock_not_negative check (stock >= 0),
    -- The number of changes, including changes of the stock.
    version bigint not null,
    created_at timestamptz not null
) with (fillfactor = 80); -- free space in each page lets a change of the stock stay there, without a write to the indexes

create index products_folded_name_trgm on products using gin (folded_name gin_trgm_ops);
