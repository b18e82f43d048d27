-- Delete a key if it holds what we think. KEYS: key. ARGV: value. Answers 1 or 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
