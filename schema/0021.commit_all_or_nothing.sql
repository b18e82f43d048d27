-- A commit of many runs is all or nothing: the statement calls this when one of them does not pass the fence.
-- depends: 0020.risk_of_attempts
CREATE FUNCTION refuse_commit() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a run is not as its owner knew it' USING ERRCODE = 'RW001';
END $$;
