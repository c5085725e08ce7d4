-- Orders, and the intents that may become orders: one row each. How a state follows another is told in src/order.rs.
create table orders (
    -- UUIDv7, given by order-service: later orders sort behind earlier ones.
    id uuid not null,

    -- Whose order it is; user-service knows who that is.
    user_id bigint not null,

    state text collate "C" not null,

    -- What clients see of the state; null while it is no order.
    status text collate "C" generated always as (
        case
            when state in ('placing', 'aborting') then null
            when state = 'cancelling' then 'cancelled'
            else state
        end
    ) stored,

    -- What was sold, as it was at that moment: [{"product": id, "name": text, "quantity": units, "price": cents}, …].
    -- Written once, when the order is settled, and never edited.
    lines jsonb not null default '[]',

    -- The sum of price times quantity, in cents.
    total bigint not null default 0,

    -- What the client calls this request, if anything, and the digest of what it asked for.
    idempotency_key text collate "C",
    fingerprint bytea,

    created_at timestamptz not null,

    -- Until then a reconciler has this row to itself, if it waits for its release.
    claimed_until timestamptz not null default '-infinity',

    constraint orders_pkey primary key (id),
    constraint orders_user_id_is_one check (user_id >= 1),
    constraint orders_state_is_one check (
        state in ('placing', 'aborting', 'pending', 'confirmed', 'shipped', 'delivered', 'cancelling', 'cancelled')
    ),
    constraint orders_total_is_one check (total >= 0),
    constraint orders_key_has_fingerprint check ((idempotency_key is null) = (fingerprint is null))
);

-- A key leads to one order. An attempt that failed gives its key up at once.
create unique index orders_idempotency_key on orders (idempotency_key)
    where idempotency_key is not null and state <> 'aborting';

-- Pages of the orders that clients see, one index for each combination of filters: each is walked in its order from where
-- the page begins, and holds nothing that the page does not show. (User and status are one text in the last, as `7pending`.
-- Behind a user_id the planner might sort all of that user's orders instead, if it believes that they are few.)
create index orders_shown on orders (id) where status is not null;
create index orders_shown_by_user on orders (user_id, id) where status is not null;
create index orders_shown_by_status on orders (status, id) where status is not null;
create index orders_shown_by_user_and_status on orders ((user_id::text || status), id) where status is not null;

-- What the reconciler looks for each second, which is next to nothing.
create index orders_placing on orders (created_at) where state = 'placing';
create index orders_to_release on orders (claimed_until, id) where state in ('aborting', 'cancelling');
