CREATE OR REPLACE FUNCTION raise_authority_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE authority_version SET version = version + 1;
    RETURN NULL;
END $$;
