-- What there is to sell.

-- Finds parts of names by an index. A trusted extension: whoever owns the database may create it.
create extension if not exists pg_trgm;

create table products (
    id bigint generated always as identity constraint products_key primary key,
    name text not null,
    -- The name without case, for the search. The service folds it, so that no locale decides what is found.
    folded_name text not null,
    -- In cents.
    price bigint not null constraint products_price_not_negative check (price >= 0),
    -- The units that no order holds. The check is the last wall: no step here comes to it.
    stock bigint not null constraint products_stock_not_negative check (stock >= 0),
    -- Counts the changes, those of the stock too.
    version bigint not null,
    created_at timestamptz not null
) with (fillfactor = 80); -- a changed stock finds room beside the old one, and no index has to know

create index products_by_part_of_name on products using gin (folded_name gin_trgm_ops);
