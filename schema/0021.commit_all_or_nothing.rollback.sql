DROP FUNCTION refuse_commit();
