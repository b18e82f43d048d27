DROP FUNCTION asked_to_decide(uuid, text[]);
DROP FUNCTION decides_for(text, text, text[]);
DROP FUNCTION tool_fits(text, text);
