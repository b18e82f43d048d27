-- Let leases go. Refused while letters wait, unless forced; a forced one is offered to the others in the same breath.
-- KEYS: ready, then (lease, inbox) for each. ARGV: force (1 or 0), then (expected, run) for each.
-- Answers one letter a lease: r released, w letters wait, l lost already.
local answer = {}
local force = ARGV[1] == '1'
for i = 1, (#KEYS - 1) / 2 do
  local lease, inbox = KEYS[2 * i], KEYS[2 * i + 1]
  if redis.call('GET', lease) ~= ARGV[2 * i] then
    answer[i] = 'l'
  else
    local waiting = redis.call('XLEN', inbox)
    if waiting > 0 and not force then
      answer[i] = 'w'
    else
      redis.call('DEL', lease)
      if waiting == 0 then redis.call('DEL', inbox) end
      if force then redis.call('XADD', KEYS[1], '*', 'r', ARGV[2 * i + 1]) end
      answer[i] = 'r'
    end
  end
end
return answer
