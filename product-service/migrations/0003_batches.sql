-- Takes and releases in batches, each of which is one transaction; one alone is a batch of one, also for the replicas that
-- still call what 0002 has, while they are replaced.
--
-- All lock in the order of 0002, a batch as well: first all orders' ids, by ascending key, then all products, by ascending
-- id. As nobody locks one that comes before what he has, nobody waits for somebody who waits for him.
--
-- A plan is made once for a connection (force_generic_plan), and not each time for just these arrays, which takes longer
-- than what it is for: it would be the same plan, for each row is looked up by its key.

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

-- The units of each product in the lines of several reservations.
create function units_in(lines jsonb[]) returns table (product_id bigint, units bigint) language sql immutable as $$
    select product, sum(quantity)::bigint
    from unnest(lines) as held, jsonb_to_recordset(held) as line (product bigint, quantity bigint) group by product
$$;

-- Takes for each order all that it asks for, or nothing, as if one came after the other. The lines of all are in one list:
-- whose it is (the index in order_ids, from 1), its own index (from 0), the product, the quantity. The answers, with that
-- index and in any order, are those of 0002's answer_to_take.
create function take_each(order_ids uuid[], whose int[], indexes int[], product_ids bigint[], quantities bigint[])
returns table (n int, answer jsonb) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    waiting int[] := array(select generate_series(1, cardinality(order_ids)));
    is_locked boolean := false; -- not for a first look, so that who is refused then waits for nobody and writes nothing
    answered int[];
    answers jsonb[];
begin
    loop
        -- One statement, so that all of it is of one moment. There is no answer yet for a take behind one of the same order,
        -- nor if there may not be enough once all that wait before it have theirs.
        select
            array_agg(n) filter (where answer is not null),
            array_agg(answer) filter (where answer is not null),
            array_agg(n) filter (where answer is null)
        into answered, answers, waiting
        from (
            select n, case
                when n > min(n) over (partition by order_ids[n]) then null
                when held.order_id is not null then jsonb_build_object('found', jsonb_build_array(held.status, held.lines))
                when unknown is not null then jsonb_build_object('unknown', unknown)
                when short is not null then jsonb_build_object('short', short)
                when is_locked and suffices then jsonb_build_object('now', wanted.lines)
            end as answer
            from (
                select
                    n,
                    jsonb_agg(at order by at) filter (where id is null) as unknown,
                    jsonb_agg(jsonb_build_array(at, stock) order by at) filter (where stock < quantity) as short,
                    bool_and(stock >= wanted_so_far) as suffices,
                    jsonb_agg(
                        jsonb_build_object('product', id, 'name', name, 'cents', price, 'quantity', quantity) order by at
                    ) as lines
                from (
                    select *, sum(quantity) over (partition by product_id order by n) as wanted_so_far
                    from unnest(whose, indexes, product_ids, quantities) as line (n, at, product_id, quantity)
                    left join products on id = product_id
                    where n = any (waiting)
                ) as line
                group by n
            ) as wanted
            left join reservations as held on held.order_id = order_ids[n]
        ) as looked_at;
        return query select * from unnest(answered, answers);
        if is_locked then
            update products set stock = stock - units, version = version + 1
                from units_in(array(select answer -> 'now' from unnest(answers) as answer)) where id = product_id;
            insert into reservations (order_id, status, lines)
                select order_ids[n], 'taken', answer -> 'now' from unnest(answered, answers) as taken (n, answer)
                where answer ? 'now';
        end if;
        exit when waiting is null;
        if not is_locked then
            perform lock_orders(array(select order_ids[n] from unnest(waiting) as n));
            perform lock_products(array(
                select product_id from unnest(whose, product_ids) as line (n, product_id) where n = any (waiting)
            ));
            is_locked := true;
        end if;
    end loop;
end
$$;

-- Gives back what each holds, once, to the products that still exist; and leaves tombstones, whatever was there.
create function release_each(order_ids uuid[]) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    given_back jsonb[];
begin
    perform lock_orders(order_ids);
    with released as (
        update reservations set status = 'released' where order_id = any (order_ids) and status = 'taken' returning lines
    )
    select array_agg(lines) into given_back from released;
    insert into reservations (order_id, status, lines)
        select order_id, 'released', '[]' from unnest(order_ids) as order_id on conflict do nothing;
    if given_back is not null then
        perform lock_products(array(select product_id from units_in(given_back)));
        update products set stock = stock + units, version = version + 1 from units_in(given_back) where id = product_id;
    end if;
end
$$;

create or replace function take_units(for_order uuid, product_ids bigint[], quantities bigint[]) returns jsonb
language sql as $$
    select answer from take_each(
        array[for_order], array_fill(1, array[cardinality(product_ids)]),
        array(select generate_series(0, cardinality(product_ids) - 1)), product_ids, quantities
    )
$$;

create or replace function release_units(for_order uuid) returns void language sql as $$
    select release_each(array[for_order])
$$;
