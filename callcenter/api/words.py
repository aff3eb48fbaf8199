"""What a person reads when the answer is no: one sentence in Chinese, one in English, each saying what to do."""

from enum import StrEnum
from typing import NamedTuple

from callcenter.domain.messages import Reason


class Fault(StrEnum):
    """Why the API itself says no, beside the centre's own ``Reason``; stable words that screens may match on."""

    BAD_REQUEST = "bad_request"
    BAD_MESSAGE = "bad_message"
    ID_REUSED = "id_reused"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    NOT_LOGGED_IN = "not_logged_in"
    WRONG_LOGIN = "wrong_login"
    LOGIN_LOCKED = "login_locked"
    LOGIN_DISABLED = "login_disabled"
    FORBIDDEN = "forbidden"
    FOREIGN_ORIGIN = "foreign_origin"
    NOT_FOUND = "not_found"
    NO_SUCH_TICKET = "no_such_ticket"
    NO_SUCH_RECORDING = "no_such_recording"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    FORM_CHANGED = "form_changed"
    REFUSED_BY_SERVER = "refused_by_server"
    ENGINE_BUSY = "engine_busy"
    STORE_AWAY = "store_away"


class Sentence(NamedTuple):
    zh: str
    en: str


SENTENCES: dict[Reason | Fault, Sentence] = {
    Reason.NO_SUCH_CALL: Sentence(
        "没有这通电话，或它不归您处理；请刷新列表。",
        "There is no such call, or it is not yours to see; refresh the list.",
    ),
    Reason.NOT_YOUR_CALL: Sentence(
        "您不在这通电话里，不能操作它；请在自己的通话上操作。",
        "You are not in this call and cannot change it; act on your own call.",
    ),
    Reason.NOT_TALKING: Sentence(
        "电话还没有接通；请接听后再操作。", "The call is not being talked yet; answer it first."
    ),
    Reason.CALL_ENDED: Sentence(
        "通话已经结束；请填写话后小结。", "The call has ended; finish its wrap-up instead."
    ),
    Reason.CALLER_GONE: Sentence(
        "来电人已挂机；可以结束通话并填写小结。",
        "The caller has hung up; end the call and write its wrap-up.",
    ),
    Reason.ALREADY_HELD: Sentence(
        "通话已经在保持中；要继续通话请按恢复。", "The call is on hold already; press resume to talk."
    ),
    Reason.NOT_HELD: Sentence(
        "通话没有被保持，不需要恢复。", "The call is not on hold, so there is nothing to resume."
    ),
    Reason.NO_SUCH_PARTY: Sentence(
        "通话里没有这一方，可能已经离开；请看最新的通话方列表。",
        "This party is not in the call, perhaps it has left; look at the parties shown now.",
    ),
    Reason.NOBODY_TO_MERGE: Sentence(
        "没有已接通的第三方可以并入；请等对方接听。",
        "No third party has answered yet; wait for the answer before bringing the caller in.",
    ),
    Reason.NOBODY_LEFT: Sentence(
        "您离开后来电人将无人接待；请先邀请一方，或挂断通话。",
        "The caller would be left alone; invite somebody first, or hang up.",
    ),
    Reason.ALREADY_INVITING: Sentence(
        "正在呼叫另一方；请等待应答，或先取消这次邀请。",
        "Another party is being rung; wait for the answer or withdraw that invitation first.",
    ),
    Reason.TOO_MANY_PARTIES: Sentence(
        "通话方已满；请先请出一方再邀请。", "The call is full; drop a party before inviting another."
    ),
    Reason.NO_SUCH_USER: Sentence(
        "没有这位同事；请从通讯录中选择。", "There is no such colleague; choose one from the directory."
    ),
    Reason.NO_SUCH_SKILL: Sentence(
        "没有人具备这项技能；请从通讯录中选择。",
        "Nobody has this skill; choose one from the directory.",
    ),
    Reason.NO_SUCH_QUEUE: Sentence(
        "没有这个队列；请从列表中选择。", "There is no such queue; choose one from the list."
    ),
    Reason.NUMBER_NOT_ALLOWED: Sentence(
        "这个号码不在允许拨打的名单里；请从名单中选择，或请管理员添加。",
        "This number is not on the allowed list; choose one from it or ask an administrator to add it.",
    ),
    Reason.NOBODY_FREE: Sentence(
        "现在没有空闲的人；请稍后再试，或选择其他人。",
        "Nobody is free now; try again in a moment or choose somebody else.",
    ),
    Reason.TARGET_BUSY: Sentence(
        "对方正忙；请稍后再试，或选择其他人。",
        "That person is busy; try again in a moment or choose somebody else.",
    ),
    Reason.NO_PHONE: Sentence(
        "没有分配话机；请联系管理员。", "No telephone is assigned; ask an administrator."
    ),
    Reason.PHONE_UNREACHABLE: Sentence(
        "话机不在线；请检查话机或软电话是否已注册。",
        "The telephone is off line; check that the phone or softphone is registered.",
    ),
    Reason.NOT_AN_AGENT: Sentence(
        "您的账号没有话务席位，不能设置话务状态；需要时请联系管理员。",
        "Your account has no seat at the telephone; ask an administrator if you need one.",
    ),
    Reason.IN_A_CALL: Sentence(
        "您正在通话中；请在通话结束后再操作。", "You are in a call; do this when it is over."
    ),
    Reason.UNKNOWN_REASON: Sentence(
        "没有这个示忙原因；请从列表中选择。", "There is no such not-ready reason; choose one from the list."
    ),
    Reason.UNKNOWN_DISPOSITION: Sentence(
        "没有这个小结类型；请从列表中选择。", "There is no such disposition; choose one from the list."
    ),
    Reason.TELEPHONY_DOWN: Sentence(
        "电话系统暂时断开，正在恢复；请几秒后再试，进行中的通话不受影响。",
        "The telephone system is away and coming back; try again in a few seconds, calls in progress go on.",
    ),
    Fault.BAD_REQUEST: Sentence(
        "请求内容有误；请按详情中的字段修改。",
        "The request is not right; correct the field named in the detail.",
    ),
    Fault.BAD_MESSAGE: Sentence(
        "无法识别这条消息；请按详情中的字段修改，或刷新页面。",
        "This message is not understood; correct the field named in the detail or reload the page.",
    ),
    Fault.ID_REUSED: Sentence(
        "这个命令编号刚被另一条命令用过；请换一个新编号。",
        "This command id was just used for a different command; send it with a new id.",
    ),
    Fault.TOO_LARGE: Sentence(
        "内容太长，超过 64 kB；请缩短后再发。",
        "The content is larger than 64 kB; shorten it and send it again.",
    ),
    Fault.TOO_MANY: Sentence(
        "请求太频繁；请按提示的时间等待后再试。",
        "There are too many requests; wait as long as told and try again.",
    ),
    Fault.NOT_LOGGED_IN: Sentence(
        "尚未登录或登录已过期；请重新登录。", "You are not logged in, or no longer; log in again."
    ),
    Fault.WRONG_LOGIN: Sentence(
        "用户名或密码不对；请重新输入。", "Wrong user name or password; type them again."
    ),
    Fault.LOGIN_LOCKED: Sentence(
        "登录失败次数过多，账号暂时锁定；请稍后再试，或请管理员重置密码。",
        "Too many failed logins, the account is locked for a while; try later or ask for a new password.",
    ),
    Fault.LOGIN_DISABLED: Sentence(
        "这个账号已停用；请联系管理员。", "This account is switched off; ask an administrator."
    ),
    Fault.FORBIDDEN: Sentence(
        "您的角色没有这项权限；需要时请联系管理员。",
        "Your role does not allow this; ask an administrator if you need it.",
    ),
    Fault.FOREIGN_ORIGIN: Sentence(
        "请求来自其他网站，已拒绝；请从本系统的页面打开。",
        "The request came from another site and is refused; open this system's own page.",
    ),
    Fault.NOT_FOUND: Sentence(
        "没有这个地址；接口列表见 /api/v1/openapi.json。",
        "There is nothing at this address; /api/v1/openapi.json lists what there is.",
    ),
    Fault.NO_SUCH_TICKET: Sentence(
        "没有这张工单，或它不归您查看；请核对工单号。",
        "There is no such ticket, or it is not yours to see; check its number.",
    ),
    Fault.NO_SUCH_RECORDING: Sentence(
        "没有这段录音，或它不归您收听；请从通话的录音列表中选择。",
        "There is no such recording, or it is not yours to hear; choose one from the call's list.",
    ),
    Fault.METHOD_NOT_ALLOWED: Sentence(
        "这个地址不支持这种操作；接口列表见 /api/v1/openapi.json。",
        "This address does not take this method; /api/v1/openapi.json lists what there is.",
    ),
    Fault.FORM_CHANGED: Sentence(
        "这份登记表刚在别处改过；已有的内容没有丢失，请核对两边后再保存。",
        "The form was changed elsewhere just now; nothing is lost, compare both and save again.",
    ),
    Fault.REFUSED_BY_SERVER: Sentence(
        "服务器不能接受这个请求；请按详情修改。",
        "The server cannot take this request; correct it as the detail says.",
    ),
    Fault.ENGINE_BUSY: Sentence(
        "系统没有及时应答；请先看屏幕上的通话状态，再决定是否重试。",
        "The system did not answer in time; look at the call as shown before trying again.",
    ),
    Fault.STORE_AWAY: Sentence(
        "数据库暂时不可用，通话不受影响；请稍后再试。",
        "The database is away for the moment, calls go on; try again shortly.",
    ),
}
