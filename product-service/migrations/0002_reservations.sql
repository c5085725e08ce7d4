-- What orders hold, and the two steps that change it. Each step is one call of one function, and so one transaction.
--
-- Whoever changes anything here locks first the order's id, which may have no row yet, and then the products by
-- ascending id. As all lock in this order, nobody waits for somebody who waits for him.

create table reservations (
    order_id uuid constraint reservations_key primary key,
    -- Released ones stay: each is the tombstone that refuses a late take.
    status text not null constraint reservations_status_known check (status in ('taken', 'released')),
    -- In the order asked, with the names and prices of then: [{"product", "name", "cents", "quantity"}, ...]
    lines jsonb not null
);

create function lock_order(its_id uuid) returns void language sql as $$
    select pg_advisory_xact_lock(hashtextextended(its_id::text, 0)) -- two ids with one hash only wait for each other
$$;

-- What a take is answered at this moment; one statement, so that all of it is of the same moment:
--   {"found": [status, lines]}            the order's id is in use
--   {"unknown": [index, ...]}             these lines name products that do not exist
--   {"short": [[index, units left], ...]} these lines ask for more than is left
--   {"now": lines}                        nothing is in the way
create function answer_to_take(for_order uuid, product_ids bigint[], quantities bigint[]) returns jsonb
language plpgsql stable as $$
begin
    return (
        select case
            when held.order_id is not null then jsonb_build_object('found', jsonb_build_array(held.status, held.lines))
            when wanted.unknown is not null then jsonb_build_object('unknown', wanted.unknown)
            when wanted.short is not null then jsonb_build_object('short', wanted.short)
            else jsonb_build_object('now', wanted.lines)
        end
        from (
            select
                jsonb_agg(n - 1 order by n) filter (where id is null) as unknown,
                jsonb_agg(jsonb_build_array(n - 1, stock) order by n) filter (where stock < quantity) as short,
                jsonb_agg(
                    jsonb_build_object('product', id, 'name', name, 'cents', price, 'quantity', quantity) order by n
                ) as lines
            from unnest(product_ids, quantities) with ordinality as line (product_id, quantity, n)
            left join products on id = product_id
        ) as wanted
        left join reservations as held on held.order_id = for_order
    );
end
$$;

-- Takes all that is asked for, or nothing. The answer is that of answer_to_take.
create function take_units(for_order uuid, product_ids bigint[], quantities bigint[]) returns jsonb
language plpgsql as $$
declare
    -- A first look, so that a refusal waits for nobody and writes nothing: when a thing is sold out, most are refused.
    answer jsonb := answer_to_take(for_order, product_ids, quantities);
begin
    if answer ? 'now' then
        perform lock_order(for_order);
        perform id from products where id = any (product_ids) order by id for update;
        answer := answer_to_take(for_order, product_ids, quantities); -- it holds: nobody else can change any of it
    end if;
    if answer ? 'now' then
        update products set stock = stock - quantity, version = version + 1
            from unnest(product_ids, quantities) as line (product_id, quantity) where id = product_id;
        insert into reservations (order_id, status, lines) values (for_order, 'taken', answer -> 'now');
    end if;
    return answer;
end
$$;

-- Gives back what is taken, once, to the products that still exist; and leaves a tombstone, whatever was there.
create function release_units(for_order uuid) returns void
language plpgsql as $$
declare
    given_back jsonb;
begin
    perform lock_order(for_order);
    update reservations set status = 'released' where order_id = for_order and status = 'taken'
        returning lines into given_back;
    if found then
        perform id from products
            where id in (select product from jsonb_to_recordset(given_back) as line (product bigint))
            order by id for update;
        update products set stock = stock + quantity, version = version + 1
            from jsonb_to_recordset(given_back) as line (product bigint, quantity bigint) where id = product;
    else
        insert into reservations (order_id, status, lines) values (for_order, 'released', '[]') on conflict do nothing;
    end if;
end
$$;
