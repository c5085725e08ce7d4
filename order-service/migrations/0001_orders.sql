-- Orders, and the intents that may become orders: one row each. src/order.rs defines the states and the steps between
-- them.
create table orders (
    -- UUIDv7, assigned by order-service: later orders sort after earlier ones.
    id uuid not null,

    -- The user who placed the order. user-service owns users, so this is no foreign key.
    user_id bigint not null,

    state text collate "C" not null,

    -- The status that clients see; null if the row is not an order.
    status text collate "C" generated always as (
        case
            when state in ('placing', 'aborting') then null
            when state = 'cancelling' then 'cancelled'
            else state
        end
    ) stored,

    -- The lines at the time of the order: [{"product": id, "name": text, "quantity": units, "price": cents}, …].
    -- Written once, when the intent is settled, and never changed.
    lines jsonb not null default '[]',

    -- The sum of price times quantity, in cents.
    total bigint not null default 0,

    -- The idempotency key of the request, if it has one, and the digest of its body.
    idempotency_key text collate "C",
    fingerprint bytea,

    created_at timestamptz not null,

    -- The end of the lease of the reconciler that is releasing the stock of this order.
    claimed_until timestamptz not null default '-infinity',

    constraint orders_pkey primary key (id),
    constraint orders_user_id_positive check (user_id >= 1),
    constraint orders_state_known check (
        state in ('placing', 'aborting', 'pending', 'confirmed', 'shipped', 'delivered', 'cancelling', 'cancelled')
    ),
    constraint orders_total_not_negative check (total >= 0),
    constraint orders_key_with_fingerprint check ((idempotency_key is null) = (fingerprint is null))
);

-- A key belongs to at most one order. A failed attempt frees its key immediately.
create unique index orders_idempotency_key on orders (idempotency_key)
    where idempotency_key is not null and state <> 'aborting';

-- Pages of the visible orders: one index for each combination of filters, in the order of the page and without other
-- rows. The last one has user and status as one text, such as `7pending`. With `user_id` as a column of its own the
-- planner might sort all orders of the user instead, if it estimates that they are few.
create index orders_visible on orders (id) where status is not null;
create index orders_visible_by_user on orders (user_id, id) where status is not null;
create index orders_visible_by_status on orders (status, id) where status is not null;
create index orders_visible_by_user_and_status on orders ((user_id::text || status), id) where status is not null;

-- The rows that the reconciler looks for each second; usually almost none.
create index orders_placing on orders (created_at) where state = 'placing';
create index orders_to_release on orders (claimed_until, id) where state in ('aborting', 'cancelling');
