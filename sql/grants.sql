-- What the queries read. Column privileges: nothing else of these tables can be read.
GRANT CONNECT ON DATABASE {database} TO {role};
{grants}
