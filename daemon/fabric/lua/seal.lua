-- Write the epoch of a fresh claim into its lease, if the lease is still ours.
-- KEYS: leases. ARGV: TTL ms, then (expected, new) for each. Answers 1 or 0 a lease.
local answer = {}
for i, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[2 * i] then
    redis.call('SET', key, ARGV[2 * i + 1], 'PX', ARGV[1])
    answer[i] = 1
  else
    answer[i] = 0
  end
end
return answer
