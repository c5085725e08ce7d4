-- Intents get narrow tables of their own. The row of an order is written once, when the order is placed.

-- The orders that are being placed. A row is deleted when its order is placed or aborted.
create table intents (
    -- UUIDv7, assigned by order-service. It becomes the id of the order.
    id uuid constraint intents_pkey primary key,
    user_id bigint not null,
    idempotency_key text collate "C",
    created_at timestamptz not null,
    -- By the clock of the database. It decides which intents are abandoned.
    begun_at timestamptz not null default now()
);

-- The orders whose stock the reconciler releases: aborted attempts, which have no row in `orders`, and cancelled orders.
create table releases (
    order_id uuid constraint releases_pkey primary key,
    -- The end of the lease of the reconciler that is releasing the stock of this order.
    claimed_until timestamptz not null default '-infinity'
);

create index releases_by_claim on releases (claimed_until, order_id);

-- A key belongs to at most one order. An aborted attempt frees its key immediately, and an order keeps it.
create table idempotency_keys (
    key text collate "C" constraint idempotency_keys_pkey primary key,
    order_id uuid not null,
    -- The digest of the body of the request.
    fingerprint bytea not null
);

-- Together with the primary key and `orders_visible_by_status`, it serves every combination of filters.
create index orders_by_user_and_status on orders (user_id, status, id);

-- The cancelled orders whose stock is not released yet; and what the release before leaves behind. Usually almost none.
create index orders_unfinished on orders (begun_at) where state in ('placing', 'aborting', 'cancelling');

-- The rest is for replicas of the release before, until all are replaced. Their intents are rows of `orders`, with the key. The
-- triggers keep a key unique across both releases. They have the rights of the owner, because the grants for the new tables may
-- come later.

create function hold_key() returns trigger language plpgsql security definer set search_path from current as $$
begin
    insert into idempotency_keys (key, order_id, fingerprint) values (new.idempotency_key, new.id, new.fingerprint)
        on conflict do nothing;
    if found then
        return new;
    end if;
    -- The replica will look for the order with this key.
    update orders set idempotency_key = key, fingerprint = held.fingerprint from idempotency_keys as held
        where key = new.idempotency_key and id = order_id and orders.idempotency_key is null;
    return null;
end
$$;

create trigger hold_key before insert on orders for each row when (new.idempotency_key is not null)
    execute function hold_key();

create function free_key() returns trigger language plpgsql security definer set search_path from current as $$
begin
    delete from idempotency_keys where key = old.idempotency_key and order_id = old.id;
    return null;
end
$$;

create trigger free_key after update of state on orders for each row
    when (old.idempotency_key is not null and new.state = 'aborting') execute function free_key();

-- The triggers lock the table against writes until the end of the migration, so no key is missed.
insert into idempotency_keys (key, order_id, fingerprint)
    select idempotency_key, id, fingerprint from orders where idempotency_key is not null and state <> 'aborting';

drop index orders_visible, orders_visible_by_user, orders_visible_by_user_and_status, orders_placing, orders_to_release;
