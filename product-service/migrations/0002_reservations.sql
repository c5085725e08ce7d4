-- The units that orders hold, and the two steps that change them. Each step is one call of one function, and so one
-- transaction. A single request is a batch of one.
--
-- No deadlock is possible, because every step locks in one order: first all order ids by ascending key, then all products by
-- ascending id. An order id may have no row yet, so it is locked by an advisory lock.
--
-- force_generic_plan: each row is looked up by its key, so one plan fits all arrays. To plan for each call would take longer
-- than the call itself.

create table reservations (
    order_id uuid constraint reservations_pkey primary key,
    -- Released reservations stay: each is the tombstone that rejects a late request.
    status text not null constraint reservations_status_known check (status in ('taken', 'released')),
    -- In the order of the request, with the names and prices at that time: [{"product", "name", "cents", "quantity"}, ...]
    lines jsonb not null
);

-- Two ids with the same hash wait for each other, which does no harm.
create function lock_orders(order_ids uuid[]) returns void language plpgsql as $$
begin
    perform pg_advisory_xact_lock(key)
        from (select distinct hashtextextended(id::text, 0) as key from unnest(order_ids) as id order by key) as keys;
end
$$;

create function lock_products(product_ids bigint[]) returns void language plpgsql as $$
begin
    perform id from products where id = any (product_ids) order by id for update;
end
$$;

-- Returns the units of each product in the lines of several reservations.
create function units_by_product(reserved jsonb[]) returns table (product_id bigint, units bigint)
language sql immutable as $$
    select product, sum(quantity)::bigint
    from unnest(reserved) as lines, jsonb_to_recordset(lines) as line (product bigint, quantity bigint) group by product
$$;

-- Reserves for each order all units of its lines, or none, as if one request followed the other.
--
-- The lines of all requests are in one list: the number of the request (the index in order_ids, from 1), the index of the line
-- in the request (from 0), the product and the quantity. Each request gets one answer, in any order:
--   {"created": lines}                                     reserved by this request
--   {"existing": [status, lines]}                          the order has a reservation already
--   {"unknown_products": [index, ...]}                     these lines name products that do not exist
--   {"insufficient_stock": [[index, units left], ...]}     these lines ask for more units than are left
create function reserve_many(
    order_ids uuid[], requests int[], indexes int[], product_ids bigint[], quantities bigint[]
) returns table (request int, answer jsonb) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    waiting int[] := array(select generate_series(1, cardinality(order_ids)));
    -- The first look takes no locks: a request that is rejected then waits for no other and writes nothing. While a product
    -- is sold out, most requests are rejected.
    is_locked boolean := false;
    answered int[];
    answers jsonb[];
begin
    loop
        -- One statement, so that all answers are of the same moment. A request gets no answer yet if an earlier one is for the
        -- same order, or if the stock may not suffice after the earlier ones.
        select
            array_agg(n) filter (where answer is not null),
            array_agg(answer) filter (where answer is not null),
            array_agg(n) filter (where answer is null)
        into answered, answers, waiting
        from (
            select n, case
                when n > min(n) over (partition by order_ids[n]) then null
                when held.order_id is not null
                    then jsonb_build_object('existing', jsonb_build_array(held.status, held.lines))
                when unknown is not null then jsonb_build_object('unknown_products', unknown)
                when short is not null then jsonb_build_object('insufficient_stock', short)
                when is_locked and suffices then jsonb_build_object('created', requested.lines)
            end as answer
            from (
                select
                    n,
                    jsonb_agg(index order by index) filter (where id is null) as unknown,
                    jsonb_agg(jsonb_build_array(index, stock) order by index) filter (where stock < quantity) as short,
                    bool_and(stock >= units_so_far) as suffices,
                    jsonb_agg(
                        jsonb_build_object('product', id, 'name', name, 'cents', price, 'quantity', quantity)
                        order by index
                    ) as lines
                from (
                    select *, sum(quantity) over (partition by product_id order by n) as units_so_far
                    from unnest(requests, indexes, product_ids, quantities) as line (n, index, product_id, quantity)
                    left join products on id = product_id
                    where n = any (waiting)
                ) as line
                group by n
            ) as requested
            left join reservations as held on held.order_id = order_ids[n]
        ) as looked_up;
        return query select * from unnest(answered, answers);
        if is_locked then
            update products set stock = stock - units, version = version + 1
                from units_by_product(array(select answer -> 'created' from unnest(answers) as answer))
                where id = product_id;
            insert into reservations (order_id, status, lines)
                select order_ids[n], 'taken', answer -> 'created' from unnest(answered, answers) as created (n, answer)
                where answer ? 'created';
        end if;
        exit when waiting is null;
        if not is_locked then
            perform lock_orders(array(select order_ids[n] from unnest(waiting) as n));
            perform lock_products(array(
                select product_id from unnest(requests, product_ids) as line (n, product_id) where n = any (waiting)
            ));
            is_locked := true;
        end if;
    end loop;
end
$$;

-- Releases reservations: their units return once to the products that still exist. Leaves a tombstone for every id, even if
-- there was no reservation.
create function release_many(order_ids uuid[]) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    returned jsonb[];
begin
    perform lock_orders(order_ids);
    with released as (
        update reservations set status = 'released' where order_id = any (order_ids) and status = 'taken' returning lines
    )
    select array_agg(lines) into returned from released;
    insert into reservations (order_id, status, lines)
        select order_id, 'released', '[]' from unnest(order_ids) as order_id on conflict do nothing;
    if returned is not null then
        perform lock_products(array(select product_id from units_by_product(returned)));
        update products set stock = stock + units, version = version + 1
            from units_by_product(returned) where id = product_id;
    end if;
end
$$;
