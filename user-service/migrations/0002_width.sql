-- Usernames and e-mails are now compared in one width, and both small sigmas are one letter. This folds the rows of older
-- releases anew. A row keeps its old form if another user has the new one already.
update users
set folded_username = folded.username
from (
    select id, translate(normalize(folded_username, nfkc), 'ς', 'σ') as username,
        row_number() over (partition by translate(normalize(folded_username, nfkc), 'ς', 'σ') order by id) as rank
    from users
    where folded_username ~ '[\u3000\uff00-\uffefς]'
) as folded
where users.id = folded.id and rank = 1 and not exists (select from users where folded_username = folded.username);

update users
set folded_email = folded.email
from (
    select id, translate(normalize(folded_email, nfkc), 'ς', 'σ') as email,
        row_number() over (partition by translate(normalize(folded_email, nfkc), 'ς', 'σ') order by id) as rank
    from users
    where folded_email ~ '[\u3000\uff00-\uffefς]'
) as folded
where users.id = folded.id and rank = 1 and not exists (select from users where folded_email = folded.email);
