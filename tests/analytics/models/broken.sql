select 1 as id, * from a_table_that_is_not_there
