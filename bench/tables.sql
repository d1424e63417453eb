-- Next to no data, but thousands of tables: here the catalogue is the work.
SET synchronous_commit = off;
SELECT set_config('making.tables', :'tables', false) \g /dev/null

-- A transaction of its own for each hundred: all in one would need more locks than a server has.
DO $$
BEGIN
    FOR i IN 1..current_setting('making.tables')::int LOOP
        EXECUTE format(
            'CREATE TABLE %1$I (id integer PRIMARY KEY, name text NOT NULL,'
            ' amount numeric(10, 2), made_at timestamptz NOT NULL DEFAULT now());'
            'CREATE INDEX ON %1$I (name);'
            'INSERT INTO %1$I SELECT n, ''row '' || n, n * 1.25,'
            ' timestamptz ''2024-01-01 00:00:00+00'' + n * interval ''1 h'''
            ' FROM generate_series(1, %2$s) n;', 'ledger_' || i, 5 + i % 20);
        IF i % 100 = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
END
$$;

VACUUM (ANALYZE);
CHECKPOINT;
