-- A version of authority is one forever. Where commits were lost (a failover to a replica that was behind, a restore),
-- counting on from what is left would give the next change a number that nodes already know for something else: they
-- would take a hold for what was lost. So a version is at least the moment of its change, in microseconds.
-- depends: 0022.event_pages
CREATE OR REPLACE FUNCTION raise_authority_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE authority_version
    SET version = greatest(version + 1, floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    RETURN NULL;
END $$;
