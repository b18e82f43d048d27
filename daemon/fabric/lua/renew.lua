-- Renew leases; a missing one is taken again, another's is left alone.
-- KEYS: leases. ARGV: TTL ms, then the expected value of each.
-- Answers one letter a lease: r renewed, t taken again, l lost.
local answer = {}
for i, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  if holder == ARGV[i + 1] then
    redis.call('PEXPIRE', key, ARGV[1])
    answer[i] = 'r'
  elseif not holder then
    redis.call('SET', key, ARGV[i + 1], 'PX', ARGV[1])
    answer[i] = 't'
  else
    answer[i] = 'l'
  end
end
return answer
