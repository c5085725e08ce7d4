-- The search now compares names in Unicode NFC. This folds the rows of older releases anew.
update products set folded_name = normalize(folded_name, nfc) where folded_name is not nfc normalized;
